//! The strict client detects every way of losing a request, each tested with a server that does it.

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

/// What a server does with a request.
enum Then {
    Send(&'static str),
    Close,
    Reset,
    Wait,
}

/// Sends two requests on one connection. The first is answered correctly, and the second as `then`
/// says. Returns the result of the second.
fn second(then: Then) -> Result<Vec<u8>, Failure> {
    let (port, server) = serve(vec![Then::Send(RIGHT), then]);
    let mut connection = connection(port);
    assert_eq!(connection.get("/", true), Ok(b"ok:7\n".to_vec()));
    let answer = connection.get("/", true);
    drop(connection);
    server.join().unwrap();
    answer
}

/// Sends one request on a new connection.
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
                Then::Send(text) => {
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
fn a_correct_answer_is_accepted() {
    assert_eq!(fresh(Then::Send(RIGHT)), Ok(b"ok:7\n".to_vec()));
    assert_eq!(second(Then::Send(RIGHT)), Ok(b"ok:7\n".to_vec()));
}

#[test]
fn chunks_are_joined() {
    let chunked =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nok:\r\n2\r\n7\n\r\n0\r\n\r\n";
    assert_eq!(fresh(Then::Send(chunked)), Ok(b"ok:7\n".to_vec()));
}

#[test]
fn a_port_without_a_listener_is_refused() {
    // tcpmux, which no test machine serves.
    assert_eq!(connection(1).get("/", true), Err(Failure::Refused));
}

#[test]
fn a_new_connection_closed_before_its_answer_is_a_fresh_failure() {
    assert_eq!(fresh(Then::Close), Err(Failure::FreshEof));
    assert_eq!(fresh(Then::Reset), Err(Failure::FreshReset));
}

#[test]
fn a_kept_connection_closed_without_notice_is_a_reused_failure() {
    assert_eq!(second(Then::Close), Err(Failure::ReusedEof));
    assert_eq!(second(Then::Reset), Err(Failure::ReusedReset));
}

#[test]
fn a_connection_announced_to_close_is_not_reused() {
    let (port, server) = serve(vec![
        Then::Send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nok:7\n"),
        Then::Wait,
    ]);
    let mut connection = connection(port);
    assert!(connection.get("/", true).is_ok());
    // The new connection is not answered. When the server has ended, its port may be another's.
    let _ = connection.get("/", true);
    assert_eq!(connection.made, 2);
    drop(connection);
    server.join().unwrap();
}

#[test]
fn an_incomplete_answer_is_a_failure() {
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
    for (answer, failure) in cases {
        assert_eq!(fresh(Then::Send(answer)), Err(failure), "{answer:?}");
    }
}

#[test]
fn a_wrong_answer_is_a_failure() {
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
    for (answer, failure) in cases {
        assert_eq!(fresh(Then::Send(answer)), Err(failure), "{answer:?}");
    }
}

#[test]
fn an_unexpected_body_is_a_failure() {
    let (port, server) = serve(vec![Then::Send(
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nsorry",
    )]);
    assert_eq!(Load::on(port).once("/"), Err(Failure::BadBody));
    server.join().unwrap();
}

#[test]
fn an_answer_after_the_timeout_is_a_failure() {
    assert_eq!(fresh(Then::Wait), Err(Failure::Timeout));
}
