"""Which versions does a write make?"""
