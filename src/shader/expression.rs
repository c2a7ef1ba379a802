//! Integer expressions of shaders, as the bounds of unrolled loops and guards are: WGSL's operators
//! in its order, over constants that the host knows.

use std::collections::HashMap;

/// Evaluates an integer or bool const expression: literals, names, `+ - * / %`, comparisons,
/// `! && ||`, `u32() i32() min() max() select()`.
pub(super) fn evaluate(text: &str, values: &HashMap<String, i64>) -> Result<i64, String> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0, values };
    let value = parser.binary(0)?;
    if parser.at < parser.tokens.len() {
        Err(format!("unexpected `{}`", parser.tokens[parser.at]))
    } else {
        Ok(value)
    }
}

fn tokens(text: &str) -> Result<Vec<&str>, String> {
    let mut out = Vec::new();
    let mut rest = text.trim_start();
    while let Some(c) = rest.chars().next() {
        let length = if is_word(c) {
            rest.find(|c| !is_word(c)).unwrap_or(rest.len())
        } else if ["==", "!=", "<=", ">=", "&&", "||"].iter().any(|op| rest.starts_with(op)) {
            2
        } else if "+-*/%()<>!,".contains(c) {
            1
        } else {
            return Err(format!("unexpected `{c}`"));
        };
        out.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    Ok(out)
}

/// Binary operators from the weakest to the strongest.
const LEVELS: [&[&str]; 5] =
    [&["||"], &["&&"], &["==", "!=", "<=", ">=", "<", ">"], &["+", "-"], &["*", "/", "%"]];

struct Parser<'a> {
    tokens: Vec<&'a str>,
    at: usize,
    values: &'a HashMap<String, i64>,
}

impl<'a> Parser<'a> {
    fn next(&mut self) -> Result<&'a str, String> {
        self.at += 1;
        self.tokens.get(self.at - 1).copied().ok_or_else(|| "the expression ends early".to_owned())
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        let found = self.next()?;
        if found == token { Ok(()) } else { Err(format!("expected `{token}`, found `{found}`")) }
    }

    fn binary(&mut self, level: usize) -> Result<i64, String> {
        if level == LEVELS.len() {
            return self.unary();
        }
        let mut left = self.binary(level + 1)?;
        while let Some(op) = self.tokens.get(self.at).copied().filter(|t| LEVELS[level].contains(t))
        {
            self.at += 1;
            let right = self.binary(level + 1)?;
            let value = match op {
                "||" => Some(left | right),
                "&&" => Some(left & right),
                "==" => Some(i64::from(left == right)),
                "!=" => Some(i64::from(left != right)),
                "<=" => Some(i64::from(left <= right)),
                ">=" => Some(i64::from(left >= right)),
                "<" => Some(i64::from(left < right)),
                ">" => Some(i64::from(left > right)),
                "+" => left.checked_add(right),
                "-" => left.checked_sub(right),
                "*" => left.checked_mul(right),
                "/" => left.checked_div(right),
                _ => left.checked_rem(right),
            };
            left = value.ok_or_else(|| format!("`{left} {op} {right}` has no value"))?;
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<i64, String> {
        let token = self.next()?;
        match token {
            "-" => Ok(-self.unary()?),
            "!" => Ok(1 - self.unary()?),
            "(" => {
                let value = self.binary(0)?;
                self.expect(")")?;
                Ok(value)
            }
            "true" | "false" => Ok(i64::from(token == "true")),
            _ if token.starts_with(|c: char| c.is_ascii_digit()) => {
                let digits = token.strip_suffix(['u', 'i']).unwrap_or(token);
                digits.parse().map_err(|_| format!("`{token}` is not an integer"))
            }
            _ if self.tokens.get(self.at) == Some(&"(") => self.call(token),
            _ => self
                .values
                .get(token)
                .copied()
                .ok_or_else(|| format!("`{token}` is not an integer const of this shader")),
        }
    }

    fn call(&mut self, name: &str) -> Result<i64, String> {
        self.expect("(")?;
        let mut args = vec![self.binary(0)?];
        while self.tokens.get(self.at) == Some(&",") {
            self.at += 1;
            args.push(self.binary(0)?);
        }
        self.expect(")")?;
        match (name, args.as_slice()) {
            ("u32" | "i32", [v]) => Ok(*v),
            ("min", [a, b]) => Ok(*a.min(b)),
            ("max", [a, b]) => Ok(*a.max(b)),
            ("select", [f, t, c]) => Ok(if *c != 0 { *t } else { *f }),
            _ => Err(format!("`{name}` with {} arguments is not understood", args.len())),
        }
    }
}

pub(super) fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evaluates() {
        let values: HashMap<String, i64> = [("A".to_owned(), 5), ("T".to_owned(), 1)].into();
        for (text, value) in [
            ("1u + 2u * 3u", 7),
            ("(1u + 2u) * 3u % 4u", 1),
            ("A - 1u - 1u", 3),
            ("min(A, 3u) + max(1, -2)", 4),
            ("select(1u, A, T && A >= 5u)", 5),
            ("u32(!T || A != 5u)", 0),
            ("7u / 2u", 3),
        ] {
            assert_eq!(evaluate(text, &values), Ok(value), "{text}");
        }
        for text in ["", "1u +", "B", "1u / 0u", "1.5", "f(1u)", "(1u", "1u 2u"] {
            assert!(evaluate(text, &values).is_err(), "{text}");
        }
    }
}
