"""The settings of a training by topic, each with its own checks; one record inherits them all."""
