//! The strict client sees every way of losing a request: each one against a server that does it.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::Duration,
};

use super::{
    client::Load,
    http::{Connection, Failure},
};

const RIGHT: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok:7\n";

/// What a server does with the second request on its second connection and all later ones.
enum Then {
    Say(&'static str),
    Close,
    Reset,
    Wait,
}

/// Two requests on one connection: `first` is answered right, then `then`. What the second got.
fn second(then: Then) -> Result<Vec<u8>, Failure> {
    let (port, server) = serve(vec![Then::Say(RIGHT), then]);
    let mut connection = connection(port);
    assert_eq!(connection.get("/", true), Ok(b"ok:7\n".to_vec()));
    let answer = connection.get("/", true);
    drop(connection);
    server.join().unwrap();
    answer
}

/// One request on a new connection.
fn fresh(then: Then) -> Result<Vec<u8>, Failure> {
    let (port, server) = serve(vec![then]);
    let mut connection = connection(port);
    let answer = connection.get("/", true);
    drop(connection);
    server.join().unwrap();
    answer
}

fn connection(port: u16) -> Connection {
    Connection::new(Load::on(port).address, Duration::from_millis(300))
}

fn serve(script: Vec<Then>) -> (u16, thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream);
        for then in script {
            match then {
                Then::Say(text) => {
                    read_request(&mut reader);
                    reader.get_mut().write_all(text.as_bytes()).unwrap();
                }
                Then::Close => read_request(&mut reader),
                // Closing with unread bytes in the buffer sends a reset (tcp(7), RFC 2525 §2.17).
                Then::Reset => {
                    reader.get_mut().peek(&mut [0]).unwrap();
                }
                Then::Wait => {
                    read_request(&mut reader);
                    let _ = reader.fill_buf();
                }
            }
        }
    });
    (port, server)
}

fn read_request(reader: &mut BufReader<TcpStream>) {
    let mut line = String::new();
    while reader.read_line(&mut line).unwrap() > 0 && line != "\r\n" {
        line.clear();
    }
}

#[test]
fn a_right_answer_is_right() {
    assert_eq!(fresh(Then::Say(RIGHT)), Ok(b"ok:7\n".to_vec()));
    assert_eq!(second(Then::Say(RIGHT)), Ok(b"ok:7\n".to_vec()));
}

#[test]
fn chunks_are_put_together() {
    let chunked =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nok:\r\n2\r\n7\n\r\n0\r\n\r\n";
    assert_eq!(fresh(Then::Say(chunked)), Ok(b"ok:7\n".to_vec()));
}

#[test]
fn nobody_listening_is_refused() {
    // tcpmux, which nobody serves.
    assert_eq!(connection(1).get("/", true), Err(Failure::Refused));
}

#[test]
fn a_new_connection_that_ends_before_an_answer_is_a_fresh_loss() {
    assert_eq!(fresh(Then::Close), Err(Failure::FreshEof));
    assert_eq!(fresh(Then::Reset), Err(Failure::FreshReset));
}

#[test]
fn a_kept_connection_that_ends_unannounced_is_a_reused_loss() {
    assert_eq!(second(Then::Close), Err(Failure::ReusedEof));
    assert_eq!(second(Then::Reset), Err(Failure::ReusedReset));
}

#[test]
fn a_kept_connection_that_was_announced_to_close_is_not_used_again() {
    let (port, server) = serve(vec![Then::Say(
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nok:7\n",
    )]);
    let mut connection = connection(port);
    assert!(connection.get("/", true).is_ok());
    server.join().unwrap();
    // The listener is gone: only a new connection can be refused.
    assert_eq!(connection.get("/", true), Err(Failure::Refused));
    assert_eq!(connection.made, 2);
}

#[test]
fn half_an_answer_is_a_loss() {
    let cases = [
        ("HTTP/1.1 200 OK\r\nContent-", Failure::MidHead),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok:",
            Failure::ShortBody,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nok:\r\n",
            Failure::ShortBody,
        ),
    ];
    for (said, failure) in cases {
        assert_eq!(fresh(Then::Say(said)), Err(failure), "{said:?}");
    }
}

#[test]
fn a_wrong_answer_is_a_loss() {
    let cases = [
        (
            "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
            Failure::BadStatus(503),
        ),
        ("SSH-2.0-OpenSSH_9.2\r\n\r\n", Failure::BadHead),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok:7\nmore",
            Failure::BadBody,
        ),
    ];
    for (said, failure) in cases {
        assert_eq!(fresh(Then::Say(said)), Err(failure), "{said:?}");
    }
}

#[test]
fn a_body_that_was_not_expected_is_a_loss() {
    let (port, server) = serve(vec![Then::Say(
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nsorry",
    )]);
    assert_eq!(Load::on(port).once("/"), Err(Failure::BadBody));
    server.join().unwrap();
}

#[test]
fn no_answer_in_time_is_a_loss() {
    assert_eq!(fresh(Then::Wait), Err(Failure::Timeout));
}
