"""A small Django project, reduced from what `django-admin startproject` makes."""
