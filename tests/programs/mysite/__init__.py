"""A small Django project, as `django-admin startproject` makes it, less what it does not need."""
