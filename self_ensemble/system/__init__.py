"""What every room stands on: errors, atomic files, locks, interrupts, the console."""
