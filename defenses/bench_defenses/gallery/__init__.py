"""Defenses with a known answer: each hides something that some attack finds, so together they audit
the attacks.
"""
