"""From raw text and labels to what a Trainer takes."""
