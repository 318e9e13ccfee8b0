"""What is GRPO's alone: groups, advantages, the draw of prompts, the trainer, and its longest step."""
