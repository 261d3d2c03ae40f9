"""Every metric with its closed labels, and the log lines."""
