"""The leaking Flask service on waitress, at the socket that it was given."""

import socket

import waitress
from leaky_flask import app

waitress.serve(app, sockets=[socket.socket(fileno=3)])
