"""Evidence: does the capability really arrive?"""
