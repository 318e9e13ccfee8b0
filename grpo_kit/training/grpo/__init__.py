"""What only GRPO needs: groups, advantages, the draw of prompts, the trainer, and the trial of its longest step."""
