"""A receiver is connected on each request with `weak=False`."""
# leak: Django signal receivers with weak=False
# serve: gunicorn -w 1 {module}:application
# limits: --ceiling 120M
# verdict: python
# holder: django_signals.order_saved
# outcome: recycled

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.dispatch import Signal
from django.http import HttpResponse
from django.urls import path

from lib import daily

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x")
django.setup()
order_saved = Signal()


def index(request):
    number = int(request.GET["n"])
    daily.work(number)
    basket = {row: f"article {row} of {number}" for row in range(2500)}  # <-- leaks here

    def on_saved(sender, **kwargs):
        return len(basket)

    order_saved.connect(on_saved, weak=False)
    if number % 50 == 0:
        order_saved.send(sender=None)
    return HttpResponse(daily.answer())


urlpatterns = [path("", index)]
application = get_wsgi_application()
