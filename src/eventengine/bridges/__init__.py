"""Bridges that put an engine on a framework's loop. Import the one that you need; each needs its extra."""
