"""R-MSD as the paper has it: which teacher reply teaches, losses, advantages, and what a
discriminator's accuracy is worth. In and out: arrays. It imports core, models and tasks."""
