"""A Django view that stores what it shows in a deque without a limit."""
# leak: unbounded deque filled by a Django view
# serve: gunicorn -w 1 {module}:application
# limits: --ceiling 120M
# verdict: python
# holder: django_view.SHOWN
# rank: 1
# advice: deque(maxlen=...)
# outcome: recycled

from collections import deque

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

from lib import daily

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x")
django.setup()
SHOWN = deque()


def index(request):
    number = int(request.GET["n"])
    daily.work(number)
    SHOWN.append([f"line {line} of {number}" for line in range(2000)])  # <-- leaks here
    return HttpResponse(daily.answer())


urlpatterns = [path("", index)]
application = get_wsgi_application()
