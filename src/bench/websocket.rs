//! WebSocket (RFC 6455), as far as a device of the benchmark speaks it: unmasked frames in, small masked
//! ones out. A server that fragments a message is not understood; neither the relay nor nchan does.

/// Longer than any row that is written here: a larger one means that the bytes are no frames.
const LONGEST_FRAME: usize = 64 * 1024 * 1024;
/// The key of the handshake is there to keep caches out, so one for all sockets will do.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// What the server makes of it, by the RFC's own example.
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// Masks protect proxies from chosen bytes; a benchmark on one machine needs none that changes.
const MASK: [u8; 4] = [0x5a, 0x3c, 0x96, 0xf1];

pub(super) const TEXT: u8 = 1;
pub(super) const CLOSE: u8 = 8;
pub(super) const PING: u8 = 9;
pub(super) const PONG: u8 = 10;

/// One frame at the beginning of what was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) opcode: u8,
    /// Where its payload begins and ends.
    pub(super) begin: usize,
    pub(super) end: usize,
}

/// The bytes are not what a server sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    #[error("a frame that is masked, fragmented or of a reserved kind")]
    Kind,
    #[error("a frame of {0} bytes")]
    Long(u64),
    #[error("an answer that is no upgrade to WebSocket: {0}")]
    Refused(u16),
}

/// The frame that the bytes begin with; `None` while it is not there whole.
pub(super) fn frame(bytes: &[u8]) -> Result<Option<Frame>, Broken> {
    let &[first, second, ref rest @ ..] = bytes else { return Ok(None) };
    if first & 0xf0 != 0x80 || second & 0x80 != 0 {
        return Err(Broken::Kind);
    }
    let (length, begin) = match second {
        126 => match rest.first_chunk::<2>() {
            Some(length) => (u64::from(u16::from_be_bytes(*length)), 4),
            None => return Ok(None),
        },
        127 => match rest.first_chunk::<8>() {
            Some(length) => (u64::from_be_bytes(*length), 10),
            None => return Ok(None),
        },
        length => (u64::from(length), 2),
    };
    let payload = usize::try_from(length).ok().filter(|length| *length <= LONGEST_FRAME);
    let end = begin + payload.ok_or(Broken::Long(length))?;
    Ok((end <= bytes.len()).then_some(Frame { opcode: first & 0x0f, begin, end }))
}

/// Appends a masked frame. What devices send is shorter than 64 KiB.
pub(super) fn write(opcode: u8, payload: &[u8], out: &mut Vec<u8>) {
    out.push(0x80 | opcode);
    match u8::try_from(payload.len()) {
        Ok(length) if length < 126 => out.push(0x80 | length),
        _ => {
            let length = u16::try_from(payload.len()).unwrap_or(u16::MAX);
            out.push(0x80 | 126);
            out.extend_from_slice(&length.to_be_bytes());
        }
    }
    out.extend_from_slice(&MASK);
    let payload = payload.iter().take(usize::from(u16::MAX));
    out.extend(payload.zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

/// The head of a request for a WebSocket. `token` is sent as `Authorization`.
pub(super) fn request(host: &str, path: &str, token: Option<&str>) -> Vec<u8> {
    let bearer = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{bearer}\r\n"
    )
    .into_bytes()
}

/// Where the frames begin behind the answer's head; `None` while that is not there whole.
pub(super) fn upgraded(bytes: &[u8]) -> Result<Option<usize>, Broken> {
    let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else { return Ok(None) };
    let head = bytes.get(..end).unwrap_or_default();
    let status = head.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    match status {
        Some(101) if memchr::memmem::find(head, ACCEPT.as_bytes()).is_some() => Ok(Some(end + 4)),
        status => Err(Broken::Refused(status.unwrap_or_default())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_whole_or_not_at_all() {
        for length in [0, 1, 125, 126, 300, 70_000] {
            let mut bytes = vec![0x81];
            match length {
                0..126 => bytes.push(length as u8),
                126..65_536 => {
                    bytes.push(126);
                    bytes.extend((length as u16).to_be_bytes());
                }
                _ => {
                    bytes.push(127);
                    bytes.extend((length as u64).to_be_bytes());
                }
            }
            let begin = bytes.len();
            bytes.resize(begin + length, b'x');
            for short in 0..bytes.len().min(12) {
                assert!(
                    short == bytes.len() || frame(&bytes[..short]).unwrap().is_none(),
                    "{length} {short}"
                );
            }
            assert_eq!(frame(&bytes[..bytes.len() - 1]).unwrap(), None);
            let whole = Frame { opcode: TEXT, begin, end: begin + length };
            bytes.push(0x81);
            assert_eq!(frame(&bytes).unwrap(), Some(whole));
        }
    }

    #[test]
    fn what_no_server_sends_is_refused() {
        assert_eq!(frame(&[0x01, 0]), Err(Broken::Kind), "a fragment");
        assert_eq!(frame(&[0x81, 0x80, 0, 0, 0, 0]), Err(Broken::Kind), "masked");
        assert_eq!(frame(&[0x81, 127, 0xff, 0, 0, 0, 0, 0, 0, 0]), Err(Broken::Long(0xff << 56)));
        assert_eq!(upgraded(b"HTTP/1.1 401 Unauthorized\r\n\r\n"), Err(Broken::Refused(401)));
        assert_eq!(upgraded(b"HTTP/1.1 101 Switching"), Ok(None));
    }

    #[test]
    fn written_frames_are_masked() {
        for length in [3_usize, 125, 126, 1_000] {
            let payload = vec![b'a'; length];
            let mut out = Vec::new();
            write(TEXT, &payload, &mut out);
            let begin = if length < 126 { 2 } else { 4 };
            assert_eq!(out[1] & 0x80, 0x80);
            let unmasked: Vec<u8> =
                out[begin + 4..].iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
            assert_eq!(unmasked, payload);
        }
    }
}
