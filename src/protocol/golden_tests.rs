//! Encodes and decodes the vectors in `tests/golden/protocol`. `tests/python/test_protocol.py` does
//! the same in Python.

use std::{collections::BTreeSet, fs, path::Path};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{
    agent_page::{self, Slot},
    agent_routes,
    document::{self, Lost, Raised},
    fork_server::{self, Message, News},
    frame::{FromWorker, Order, OrderKind, Reply, ToClient},
    mark, pool_page,
    question::{Answer, Ask, Content, Question},
    template::{self, FromTemplate, Settings, ToTemplate},
};

fn vectors(name: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/protocol")
        .join(name);
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn text<'a>(vector: &'a Value, name: &str) -> &'a str {
    vector[name].as_str().unwrap()
}

fn number(vector: &Value, name: &str) -> u64 {
    vector[name].as_u64().unwrap()
}

fn small(vector: &Value, name: &str) -> u32 {
    number(vector, name).try_into().unwrap()
}

fn hex(vector: &Value, name: &str) -> Vec<u8> {
    let digits = text(vector, name).as_bytes().chunks(2);
    digits
        .map(|two| u8::from_str_radix(str::from_utf8(two).unwrap(), 16).unwrap())
        .collect()
}

/// The words of a page: the vectors are little-endian.
fn page(vector: &Value) -> Vec<u8> {
    let mut bytes = hex(vector, "bytes");
    if cfg!(target_endian = "big") {
        bytes.chunks_mut(8).for_each(<[u8]>::reverse);
    }
    bytes
}

/// A body: one byte for each letter.
fn body(vector: &Value) -> Vec<u8> {
    let letters = text(vector, "body").chars();
    letters
        .map(|letter| u8::try_from(u32::from(letter)).unwrap())
        .collect()
}

/// Checks that there is a vector of each of these sorts and of no other.
fn assert_sorts<'a>(found: impl Iterator<Item = &'a str>, expected: &[&str]) {
    let found: BTreeSet<_> = found.collect();
    assert_eq!(found, expected.iter().copied().collect());
}

#[test]
fn frames_have_the_bytes_of_the_vectors() {
    let vectors = vectors("frames.json");
    for vector in &vectors {
        let (bytes, body) = (hex(vector, "bytes"), body(vector));
        let kind = text(vector, "kind");
        match text(vector, "frame") {
            "order" => order(vector, kind, (&body, &bytes)),
            "from_worker" => reply_of_worker(vector, kind, (&body, &bytes)),
            "to_client" => reply_to_client(vector, kind, (&body, &bytes)),
            other => panic!("{other}"),
        }
    }
    let sorts = vectors.iter().map(|vector| text(vector, "kind"));
    let kinds = [
        "task",
        "quit",
        "setup",
        "report",
        "hello",
        "result",
        "raised",
        "unserializable",
        "failed",
        "not_begun",
        "reported",
        "lost",
        "credit",
        "broken",
    ];
    assert_sorts(sorts, &kinds);
}

fn order(vector: &Value, kind: &str, (body, bytes): (&[u8], &[u8])) {
    let order = Order {
        kind: match kind {
            "task" => OrderKind::Task,
            "quit" => OrderKind::Quit,
            "setup" => OrderKind::Setup,
            "report" => OrderKind::Report,
            other => panic!("{other}"),
        },
        seq: number(vector, "task"),
        body,
    };
    let mut written = Vec::new();
    order.write(&mut written);
    assert_eq!(written, bytes, "{vector}");
    assert_eq!(Order::read(bytes), Ok(Some((order, bytes.len()))));
}

fn reply<'a, Kind>(vector: &Value, kind: Kind, body: &'a [u8]) -> Reply<'a, Kind> {
    Reply {
        kind,
        seq: number(vector, "task"),
        micros: small(vector, "micros"),
        peak_kib: small(vector, "peak_kib"),
        body,
    }
}

fn reply_of_worker(vector: &Value, kind: &str, (body, bytes): (&[u8], &[u8])) {
    let kind = match kind {
        "hello" => FromWorker::Hello,
        "result" => FromWorker::Result,
        "raised" => FromWorker::Raised,
        "unserializable" => FromWorker::Unserializable,
        "failed" => FromWorker::Failed,
        "not_begun" => FromWorker::NotBegun,
        "reported" => FromWorker::Reported,
        other => panic!("{other}"),
    };
    let reply = reply(vector, kind, body);
    assert_eq!([&reply.head()[..], body].concat(), bytes, "{vector}");
    assert_eq!(Reply::read(bytes), Ok(Some((reply, bytes.len()))));
}

fn reply_to_client(vector: &Value, kind: &str, (body, bytes): (&[u8], &[u8])) {
    let kind = match kind {
        "result" => ToClient::Result,
        "raised" => ToClient::Raised,
        "unserializable" => ToClient::Unserializable,
        "lost" => ToClient::Lost,
        "credit" => ToClient::Credit,
        "broken" => ToClient::Broken,
        other => panic!("{other}"),
    };
    let reply = reply(vector, kind, body);
    assert_eq!([&reply.head()[..], body].concat(), bytes, "{vector}");
}

#[test]
fn marks_have_the_bytes_of_the_vectors() {
    let vectors = vectors("marks.json");
    assert!(!vectors.is_empty());
    for vector in vectors {
        let secret = hex(&vector, "secret").try_into().unwrap();
        let (task, bytes) = (number(&vector, "task"), hex(&vector, "bytes"));
        assert_eq!(mark::of(secret, task), bytes);
        let output = [b"before", &bytes[..], b"after"].concat();
        let found = mark::find(&output, &secret).unwrap();
        assert_eq!((found.before, found.after), (&b"before"[..], &b"after"[..]));
        assert_eq!(found.task, task);
        assert_eq!(mark::find(&bytes[..bytes.len() - 1], &secret), None);
    }
}

#[test]
fn pages_of_workers_have_the_bytes_of_the_vectors() {
    let vectors = vectors("pool_pages.json");
    assert!(!vectors.is_empty());
    for vector in vectors {
        let bytes = page(&vector);
        let part = |from: u64, length: usize| {
            let from = usize::try_from(from).unwrap();
            &bytes[from..from + length]
        };
        let progress = part(pool_page::BEGUN, pool_page::PROGRESS_LENGTH);
        let progress = pool_page::Progress::read(progress.try_into().unwrap());
        let expected = pool_page::Progress {
            begun: number(&vector, "begun"),
            finished: number(&vector, "finished"),
            receiving: number(&vector, "receiving"),
        };
        assert_eq!(progress, expected);
        let peak = part(pool_page::PEAK, pool_page::PEAK_LENGTH);
        let peak = pool_page::Peak::read(peak.try_into().unwrap());
        let expected = pool_page::Peak {
            most: number(&vector, "most"),
            files: number(&vector, "files"),
            child: number(&vector, "child"),
            base: number(&vector, "base"),
        };
        assert_eq!(peak, expected);
        for (name, at) in [("halt", pool_page::HALT), ("reading", pool_page::READING)] {
            let word = pool_page::bytes(number(&vector, name));
            assert_eq!(part(at, word.len()), word, "{name}");
            assert_eq!(pool_page::value(word), number(&vector, name));
        }
    }
}

#[test]
fn pages_of_agents_have_the_bytes_of_the_vectors() {
    let vectors = vectors("agent_pages.json");
    for vector in &vectors {
        if text(vector, "part") == "routes" {
            routes(vector);
            continue;
        }
        let bytes = page(vector);
        if text(vector, "part") == "header" {
            let empty = agent_page::empty();
            assert_eq!(empty[..agent_page::SLOT], bytes);
            assert!(empty[agent_page::SLOT..].iter().all(|byte| *byte == 0));
            assert_eq!(agent_page::VERSION, number(vector, "version"));
            continue;
        }
        let slot = Slot {
            pid: number(vector, "pid").try_into().unwrap(),
            begun: number(vector, "started"),
            finished: number(vector, "finished"),
            begun_ns: number(vector, "begun_ns"),
            errors: number(vector, "errors"),
            version: number(vector, "version"),
            listeners: serde_json::from_value(vector["listeners"].clone()).unwrap(),
        };
        assert_eq!(Slot::read(&bytes), Some(slot));
        assert_eq!(Slot::read(&slot.bytes()), Some(slot));
    }
    let parts = vectors.iter().map(|vector| text(vector, "part"));
    assert_sorts(parts, &["header", "routes", "slot"]);
}

fn routes(vector: &Value) {
    assert_eq!(agent_routes::VERSION, number(vector, "version"));
    let at = |name| usize::try_from(number(vector, name)).unwrap();
    assert_eq!(agent_routes::offset(at("slot")), at("area_at"));
    assert_eq!(agent_routes::COUNTS - 8, at("other_at"));
    assert_eq!(agent_routes::name_offset(at("number")), at("name_at"));
    let name = text(vector, "name");
    let mut bytes = number(vector, "name_bytes").to_ne_bytes().to_vec();
    bytes.extend(name.as_bytes());
    assert_eq!(
        agent_routes::Name::read(&bytes),
        agent_routes::Name::Valid(name)
    );
}

/// Decodes `text` and encodes it again.
fn same<T: DeserializeOwned + Serialize>(text: &str) -> T {
    let message: T = template::decode(text.as_bytes()).expect(text);
    assert_eq!(template::encode(&message), text);
    message
}

#[test]
fn messages_have_the_text_of_the_vectors() {
    let vectors = vectors("template.json");
    let mut names = BTreeSet::new();
    for vector in &vectors {
        let text = text(vector, "text");
        let direction = vector["direction"].as_str().unwrap();
        match direction {
            "settings" => drop(same::<Settings>(text)),
            "to_template" => drop(same::<ToTemplate>(text)),
            "from_template" => {
                let message: FromTemplate<'_> = template::decode(text.as_bytes()).expect(text);
                assert_eq!(template::encode(&message), text);
            }
            other => panic!("{other}"),
        }
        let value: Value = serde_json::from_str(text).unwrap();
        assert_eq!(value, vector["value"]);
        if direction != "settings" {
            let name = value.as_object().unwrap().keys().next().unwrap();
            names.insert(format!("{direction} {name}"));
        }
    }
    let expected = [
        "to_template fork_server",
        "from_template ready",
        "from_template failed",
        "from_template fork_server",
        "from_template refused",
    ];
    assert_sorts(names.iter().map(String::as_str), &expected);
}

#[test]
fn messages_of_fork_servers_have_the_bytes_of_the_vectors() {
    let vectors = vectors("fork_server.json");
    for vector in &vectors {
        let (worker, bytes) = (number(vector, "number"), hex(vector, "bytes"));
        let value = |name: &str| i32::try_from(number(vector, name)).unwrap();
        let news = match text(vector, "message") {
            "fork" => {
                assert_eq!(fork_server::fork(worker).to_vec(), bytes);
                continue;
            }
            "forked" => News::Forked {
                pid: value("pid"),
                secret: hex(vector, "secret").try_into().unwrap(),
            },
            "refused" => News::Refused {
                errno: value("errno"),
            },
            "ended" => News::Ended {
                status: value("status"),
                peak_kib: number(vector, "peak_kib"),
            },
            other => panic!("{other}"),
        };
        let message = Message {
            number: worker,
            news,
        };
        assert_eq!(Message::read(&bytes), Some(message));
        assert_eq!(message.bytes(), bytes);
    }
    let sorts = vectors.iter().map(|vector| text(vector, "message"));
    assert_sorts(sorts, &["fork", "forked", "refused", "ended"]);
}

#[test]
fn questions_and_answers_have_the_text_of_the_vectors() {
    let vectors = vectors("questions.json");
    let mut contents = BTreeSet::new();
    for vector in &vectors {
        let (text, value) = (text(vector, "text"), &vector["value"]);
        if vector["direction"] == "question" {
            let question: Question = serde_json::from_str(text).unwrap();
            assert_eq!(Question::encode(question.id, question.ask), text);
            contents.insert(value["do"].as_str().unwrap());
            continue;
        }
        let answer = Answer::read(text.as_bytes()).unwrap();
        assert_eq!(answer.id, number(value, "id"));
        assert_eq!(answer.protocol, number(value, "protocol"));
        let expected = match vector["content"].as_str().unwrap() {
            "collected" => Content::Collected {
                before: number(value, "private_before"),
                after: number(value, "private_after"),
            },
            "busy" => Content::Busy,
            "base" => Content::Base { taken: true },
            "opened" => Content::Opened,
            "closed" => Content::Closed,
            "report" => Content::Report(value["report"].clone()),
            "failed" => Content::Failed(value["error"].as_str().map(str::to_owned)),
            other => panic!("{other}"),
        };
        assert_eq!(answer.content, expected);
        contents.insert(vector["content"].as_str().unwrap());
    }
    let expected = [
        "gc",
        "base",
        "open",
        "close",
        "report",
        "collected",
        "busy",
        "opened",
        "closed",
        "failed",
    ];
    assert_sorts(contents.into_iter(), &expected);
    let ask = Ask::Open {
        base: true,
        frames: 6,
        room: 1 << 20,
    };
    assert_eq!(Question::encode(2, ask), text(&vectors[1], "text"));
}

#[test]
fn errors_have_the_text_of_the_vectors() {
    let vectors = vectors("documents.json");
    for vector in &vectors {
        let (text, value) = (text(vector, "text"), &vector["value"]);
        match vector["document"].as_str().unwrap() {
            "lost" => {
                let lost: Lost = serde_json::from_value(value.clone()).unwrap();
                assert_eq!(lost.encode(), text.as_bytes());
                assert_eq!(serde_json::from_str::<Lost>(text).unwrap(), lost);
            }
            "error" => error(value, text),
            // Only Python reads the pickle.
            "with_pickle" => {
                let length = u32::try_from(text.len()).unwrap().to_le_bytes();
                let bytes = [&length[..], text.as_bytes(), &hex(vector, "pickle")].concat();
                assert_eq!(bytes, hex(vector, "bytes"));
            }
            other => panic!("{other}"),
        }
    }
    let sorts = vectors
        .iter()
        .map(|vector| vector["document"].as_str().unwrap());
    assert_sorts(sorts, &["error", "lost", "with_pickle"]);
}

fn error(value: &Value, text: &str) {
    let raised = Raised::read(text.as_bytes()).expect(text);
    let found = json!({
        "type": serde_json::from_str::<Value>(raised.kind.get()).unwrap(),
        "message": serde_json::from_str::<Value>(raised.message.get()).unwrap(),
        "traceback": raised.traceback.map(|it| serde_json::from_str::<Value>(it.get()).unwrap()),
    });
    assert_eq!(&found, value);
    if value["traceback"].is_null() {
        let (kind, message) = (value["type"].as_str(), value["message"].as_str());
        let error = document::error(kind.unwrap(), message.unwrap());
        assert_eq!(error, text.as_bytes());
    }
}
