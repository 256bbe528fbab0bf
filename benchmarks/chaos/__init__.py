"""What breaks while a sweep runs, and what may be lost: nothing."""
