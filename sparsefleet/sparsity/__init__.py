"""Pure tensor maths: selection, distributions, schedules, surgery, accounting."""
