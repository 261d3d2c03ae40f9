"""The coefficient b of the KL to the SFT model: r'_t = r_t - b (log pi - log p_sft). Source: docs/LOG.md."""

#: The default. benchmarks/results/learning.md has the results of other coefficients.
KL_COEFFICIENT = 0.5
#: Below this coefficient, a run warns: without a KL term the policy collapses while its reward rises.
LEAST_KL_COEFFICIENT = 0.2
