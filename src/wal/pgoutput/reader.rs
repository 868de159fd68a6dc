//! A byte reader that cannot leave its input: every read is checked and names its field.

use super::error::{DecodeError, Why};

/// Reads one message body from front to back.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    message: &'static str,
    rest: &'a [u8],
    total: usize,
}

impl<'a> Reader<'a> {
    #[inline]
    pub(super) fn new(message: &'static str, body: &'a [u8]) -> Self {
        Reader { message, rest: body, total: body.len() }
    }

    /// From here on, errors name this kind of message.
    #[inline]
    pub(super) fn name(&mut self, message: &'static str) {
        self.message = message;
    }

    /// Bytes read so far.
    #[inline]
    pub(super) fn offset(&self) -> usize {
        self.total - self.rest.len()
    }

    #[cold]
    pub(super) fn fail(&self, field: &'static str, why: Why) -> DecodeError {
        DecodeError { message: self.message, field, offset: self.offset(), why }
    }

    #[inline]
    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        match self.rest.split_first_chunk::<N>() {
            Some((head, rest)) => {
                self.rest = rest;
                Ok(*head)
            }
            None => Err(self.fail(field, Why::Short { wanted: N, left: self.rest.len() })),
        }
    }

    #[inline]
    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        Ok(u8::from_be_bytes(self.array(field)?))
    }

    #[inline]
    pub(super) fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        Ok(u16::from_be_bytes(self.array(field)?))
    }

    #[inline]
    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.array(field)?))
    }

    #[inline]
    pub(super) fn i32(&mut self, field: &'static str) -> Result<i32, DecodeError> {
        Ok(i32::from_be_bytes(self.array(field)?))
    }

    #[inline]
    pub(super) fn i64(&mut self, field: &'static str) -> Result<i64, DecodeError> {
        Ok(i64::from_be_bytes(self.array(field)?))
    }

    #[inline]
    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        Ok(u64::from_be_bytes(self.array(field)?))
    }

    /// A length or count that the protocol writes as a signed 32-bit number.
    #[inline]
    pub(super) fn length(&mut self, field: &'static str) -> Result<usize, DecodeError> {
        let value = self.i32(field)?;
        usize::try_from(value).map_err(|_| self.fail(field, Why::Negative(value)))
    }

    #[inline]
    pub(super) fn bytes(&mut self, field: &'static str, len: usize) -> Result<&'a [u8], DecodeError> {
        match self.rest.split_at_checked(len) {
            Some((head, rest)) => {
                self.rest = rest;
                Ok(head)
            }
            None => Err(self.fail(field, Why::Short { wanted: len, left: self.rest.len() })),
        }
    }

    /// A zero-terminated name.
    pub(super) fn name_text(&mut self, field: &'static str) -> Result<&'a str, DecodeError> {
        let end = memchr::memchr(0, self.rest).ok_or_else(|| self.fail(field, Why::Unterminated))?;
        let text = self.rest.get(..end).and_then(|bytes| std::str::from_utf8(bytes).ok());
        let text = text.ok_or_else(|| self.fail(field, Why::NotUtf8))?;
        self.bytes(field, end + 1)?;
        Ok(text)
    }

    /// Refuses a count of items of at least `smallest` bytes that the rest cannot hold, so that no
    /// allocation follows a number that only the peer chose.
    #[inline]
    pub(super) fn fits(
        &self,
        field: &'static str,
        claimed: usize,
        smallest: usize,
    ) -> Result<usize, DecodeError> {
        let possible = self.rest.len() / smallest;
        if claimed <= possible {
            Ok(claimed)
        } else {
            Err(self.fail(field, Why::Count { claimed, possible }))
        }
    }

    #[inline]
    pub(super) fn end(&self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.fail("end", Why::Trailing(self.rest.len()))) }
    }
}
