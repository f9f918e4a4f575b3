"""Reading what others wrote, or what a crash left half-written: strictly, and in bounded memory."""
