//! The content of small files, in memory that is used again.

use std::fs::File;
use std::io;
use std::ops::Range;

use crate::whole;

/// Memory that grows to what was needed most, and is zeroed but once.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: Vec<u8>,
    used: usize,
}

impl Buffer {
    /// Forgets all content.
    pub(super) fn clear(&mut self) {
        self.used = 0;
    }

    /// Reads the `size` bytes that a file should have, behind what is here: where they are, or `None` if it
    /// has less.
    ///
    /// # Errors
    ///
    /// Those of reading.
    pub(super) fn read(&mut self, file: &File, size: usize) -> io::Result<Option<Range<usize>>> {
        let content = self.used..self.used + size;
        if self.bytes.len() < content.end {
            self.bytes.resize(content.end, 0);
        }
        let read = whole::read_at(file, &mut self.bytes[content.clone()], 0)?;
        if read.len() < size {
            return Ok(None);
        }
        self.used = content.end;
        Ok(Some(content))
    }

    /// What was read.
    pub(super) fn get(&self, content: &Range<usize>) -> &[u8] {
        &self.bytes[content.clone()]
    }
}
