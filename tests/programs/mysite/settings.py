"""Settings of the project."""

ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "mysite.urls"
SECRET_KEY = "only for tests"
WSGI_APPLICATION = "mysite.wsgi.application"
