//! Names that the captured guest asked for, and what the captured client answered.
//!
//! Today's server may ask earlier or later than the captured one, under another number. So it is answered by the name:
//! as the captured client answered last, or when it does.

use std::collections::BTreeMap;

use spice_proto::tunnel::{MAX_QUERIES, NameAnswer, QueryId};

/// Questions and answers of one tunnel.
#[derive(Debug, Default)]
pub(super) struct Questions {
    /// What the captured server asked and was not answered.
    asked: BTreeMap<QueryId, String>,
    /// The captured answers, the last for each name.
    answers: BTreeMap<String, NameAnswer>,
    /// What today's server asked, while the captured one was not answered.
    waiting: Vec<(QueryId, String)>,
}

/// Names whose answer is remembered.
const MAX_NAMES: usize = 4096;

impl Questions {
    /// The captured server asked.
    pub(super) fn captured(&mut self, query: QueryId, name: &str) {
        if self.asked.len() < MAX_QUERIES {
            self.asked.insert(query, name.to_owned());
        }
    }

    /// The captured client answered. Those of today's questions that can be answered now.
    pub(super) fn answered(&mut self, query: QueryId, answer: NameAnswer) -> Vec<QueryId> {
        let Some(name) = self.asked.remove(&query) else { return Vec::new() };
        let answerable = self.waiting.extract_if(.., |(_, waiting)| *waiting == name);
        let answerable = answerable.map(|(query, _)| query).collect();
        if self.answers.len() < MAX_NAMES || self.answers.contains_key(&name) {
            self.answers.insert(name, answer);
        }
        answerable
    }

    /// Today's server asked. The answer, if there is one.
    pub(super) fn today(&mut self, query: QueryId, name: &str) -> Option<NameAnswer> {
        let answer = self.answers.get(name).copied();
        // Today's channel asks no more at a time.
        if answer.is_none() && self.waiting.len() < MAX_QUERIES {
            self.waiting.push((query, name.to_owned()));
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_answered_as_it_was_whoever_is_first() {
        let mut questions = Questions::default();
        questions.captured(QueryId(7), "nas.lan");
        assert_eq!(questions.today(QueryId(0), "nas.lan"), None);
        assert_eq!(questions.today(QueryId(1), "other.lan"), None);
        assert_eq!(questions.answered(QueryId(8), NameAnswer::Failed), []);
        assert_eq!(questions.answered(QueryId(7), NameAnswer::NoSuchName), [QueryId(0)]);
        assert_eq!(questions.today(QueryId(2), "nas.lan"), Some(NameAnswer::NoSuchName));
        questions.captured(QueryId(7), "other.lan");
        assert_eq!(questions.answered(QueryId(7), NameAnswer::Failed), [QueryId(1)]);
    }
}
