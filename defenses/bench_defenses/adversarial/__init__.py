"""Students trained against adversarial examples: objectives, GradRefine, the trainer, and the
defenses that use them.
"""
