"""Django with DEBUG keeps the queries of a thread that is not Django's own."""
# leak: connection.queries_log of a thread
# serve: gunicorn -w 1 {module}:application
# limits: --ceiling 120M
# verdict: python
# holder: django.db.connections django_debug.connection
# advice: set DEBUG = False
# outcome: recycled

import queue
import threading

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import HttpResponse
from django.urls import path

from lib import daily

DATABASE = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
settings.configure(
    DEBUG=True, DATABASES={"default": DATABASE}, ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x"
)
django.setup()
ORDERS = queue.Queue()


def store():
    while True:
        number = ORDERS.get()
        with connection.cursor() as cursor:
            for part in range(8):
                cursor.execute(f"select {part} /* {number:020000} */")  # <-- leaks here


threading.Thread(target=store, daemon=True).start()


def index(request):
    number = int(request.GET["n"])
    daily.work(number)
    ORDERS.put(number)
    return HttpResponse(daily.answer())


urlpatterns = [path("", index)]
application = get_wsgi_application()
