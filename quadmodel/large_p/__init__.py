"""The limit of many parameters as a simulator."""
