"""What the notebooks share: a state or a bundle enters; findings, incidents, frames and the look of charts leave."""
