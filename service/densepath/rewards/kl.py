"""The coefficient b of the KL to the SFT model: r'_t = r_t - b (log pi - log p_sft). Source: docs/LOG.md."""

#: The default: of the coefficients that were measured, the one that gained most without a collapse.
KL_COEFFICIENT = 0.5
#: Below this one a run is warned: without a KL term the policy collapses while its reward rises.
LEAST_KL_COEFFICIENT = 0.2
