"""report figures."""
