"""For testing what implements the interface, and what is written on it. Nothing in the package imports this."""
