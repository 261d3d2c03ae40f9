"""Dense-Path REINFORCE: a run of the method, from its settings to its files."""
