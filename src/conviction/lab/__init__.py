"""Any policy on recorded traces: replayed in seconds, measured with intervals."""
