"""What tests/docs/test_commands.py does not run by itself: the test that does, or why none can.

A command is known by how it begins, a block by its first line. `path::test` names a test; anything else is
a reason.
"""

from __future__ import annotations

from collections.abc import Iterable

#: Commands; `make` and `pytest` are looked at where they are, and what SMALL of test_commands.py has is run.
COMMANDS = {
    "curl -s -X PUT http://127.0.0.1:8000/admin/pair": (
        "tests/test_swapped_pair.py::test_rows_31_46_swaps_then_a_shutdown"
    ),
    "git clone <this repository> densepath": "the clone is what the tests run in",
    "pip install densepath": "tests/release/test_install.py::test_the_base_install_is_a_client",
    "pip install openai": "locks/dev.txt installs it",
    "pip install 'lm_eval[api]'": "locks/dev.txt installs it",
    "pip install skyrl": "locks/integrations-bare.txt installs it",
    "pip install 'densepath[ray": "locks/integrations.txt installs it",
    "lm_eval run --model local-completions": (
        "tests/integrations/test_lm_eval.py::test_loglikelihoods_are_those_of_the_hf_backend"
    ),
    "python -m openrlhf.cli.train_ppo_ray": "needs a GPU; the page says so",
    "python -m verl.trainer.main_ppo": (
        "tests/integrations_heavy/test_verl_settings.py::test_the_documented_settings_are_these"
    ),
    "uv run -m skyrl.train.entrypoints.main_opd": "no release has it; the page says so",
    "densepath serve --pair run --teacher-kl 0.5 --port": (
        "tests/integrations_heavy/test_skyrl.py::test_prompt_logprobs_are_those_of_the_rewards"
    ),
    "densepath check --pair out": (
        "tests/docs/test_from_your_run.py::test_the_folder_of_a_trainer_is_checked_and_served"
    ),
    "densepath serve --pair out": (
        "tests/docs/test_from_your_run.py::test_the_folder_of_a_trainer_is_checked_and_served"
    ),
    "densepath serve --sft adapter": (
        "tests/docs/test_from_your_run.py::test_checkpoints_and_an_adapter_are_pairs"
    ),
    "densepath serve --sft org/name": "tests/pair/test_hub.py::test_serve_takes_ids_as_the_page_says",
    "densepath serve --sft out/checkpoint-1000": (
        "tests/docs/test_from_your_run.py::test_checkpoints_and_an_adapter_are_pairs"
    ),
    "torchrun --nproc-per-node 2 -m -- densepath train": (
        "tests/trainer/reinforce/test_train.py::test_two_processes_train_together"
    ),
    "python benchmarks/pair_against_two_engines.py": (
        "tests/benchmarks/test_quick.py::test_pair_against_two_engines"
    ),
    "python benchmarks/trainer_step.py": (
        "tests/benchmarks/test_trainer_step.py::test_every_trainer_does_the_same_work"
    ),
    "python benchmarks/gpu/confirm.py": "tests/benchmarks/test_gpu.py::test_the_dry_run_is_right",
    "python benchmarks/learning/run.py": (
        "tests/benchmarks/test_learning.py::test_the_quick_run_makes_every_table"
    ),
    "python benchmarks/learning/table.py": (
        "tests/benchmarks/test_learning.py::test_the_committed_tables_are_of_the_committed_figures"
    ),
    "docker build --target": (
        "tests/containers/test_dockerfile.py::test_setup_is_told_which_engine_and_knows_the_options"
    ),
    "openssl rand -hex 32": "makes a key; any text is one",
    "printf 'api_key = ": "tests/k8s/test_settings.py::test_keys_are_in_no_manifest",
    "kubectl apply -k k8s/overlays": "tests/k8s/test_schemas.py::test_an_overlay_is_valid",
    "kubectl apply -f k8s/load-pair.yaml": (
        "tests/k8s/test_schemas.py::"
        "test_the_pod_that_loads_a_pair_is_valid_and_writes_where_the_service_reads"
    ),
    "kubectl -n densepath": "needs a cluster",
    "docker compose": "tests/deploy/test_prometheus.py::test_the_service_s_own_command_serves_the_demo",
    "DENSEPATH_PAIR_DIR=/path/to/pair docker compose": (
        "tests/containers/test_compose.py::test_a_pair_of_one_s_own_is_mounted_read_only_where_the_command_looks"
    ),
}

#: Blocks of Python; those that are not here are run.
PYTHON = {
    "import numpy as np": "tests/integrations/test_alignment.py::test_the_recipe_runs_as_it_is_written",
    "from densepath.integrations.data import ScoreColumns": (
        "tests/integrations/test_offline_data.py::test_every_row_has_the_rewards_that_the_service_answers"
    ),
    "import ray": "tests/integrations_heavy/test_ray_data.py::test_the_page_runs_as_it_is_written",
    "from densepath.integrations.openrlhf import DensePathAgentExecutor": (
        "tests/integrations/test_openrlhf.py::test_the_agent_scores_the_ids_that_were_sampled"
    ),
    "from trl import GRPOConfig": (
        "tests/integrations/test_trl.py::test_the_loss_gets_the_return_of_each_token"
    ),
    "from trl import GRPOTrainer": (
        "tests/integrations/test_trl.py::test_the_reward_function_gives_stock_trainers_the_sums"
    ),
    "trainer = ServerDistillationTrainer(": (
        "tests/integrations/test_trl_teacher.py::test_a_distillation_run_learns_from_those_numbers"
    ),
    "from sglang import RuntimeEndpoint, function, select": (
        "tests/integrations_heavy/test_sglang.py::test_select_finds_the_likeliest_choice"
    ),
    "import asyncio": "tests/integrations_heavy/test_skyrl.py::test_prompt_logprobs_are_those_of_the_rewards",
}

#: Indented blocks that nobody types.
WORDS = {
    "r_t = log p_sft(y_t | y_<t)": "the definition",
    "bytes ──▶ api ──▶ admission": "a drawing",
    "Prompt: copy: badger. The rewards of a right answer": "what tests/demo/test_served_demo.py reads",
    "t = (1 + 1/b) log p_sft": "algebra",
    "t − log π = log p_sft": "algebra",
    "[model]": "the configuration of another tool: examples/prime_rl/opd.toml",
    "RM_ARGS=(": "the script of another tool: examples/slime/opd.sh",
    "reward.custom_reward_function.path=": (
        "tests/integrations_heavy/test_verl_settings.py::test_the_documented_settings_are_these"
    ),
}


def known(words: str, table: Iterable[str]) -> str | None:
    """The entry that `words` begin with: the longest, where there are several."""
    return max((entry for entry in table if words.startswith(entry)), key=len, default=None)
