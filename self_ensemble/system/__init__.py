"""What the rest of the package stands on: errors, atomic files, locks, interrupts, the console."""
