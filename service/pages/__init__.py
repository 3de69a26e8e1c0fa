"""What people see in a browser: pages made here, on the same use cases and representations as the API.

A page is HTML that is complete when it arrives. Scripts (`static/`) keep it up to date, upload, and draw curves; what
they change, they ask the API for.
"""
