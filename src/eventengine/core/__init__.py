"""One implementation of the interface, over any host loop. Nothing here is public."""
