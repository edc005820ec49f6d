"""ReCon, in both senses."""
