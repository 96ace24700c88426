"""Workers on Ray that hold a whole model each, and are fed batch by batch."""
