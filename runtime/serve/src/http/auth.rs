//! API keys: `Authorization: Bearer KEY`, or as the password of `Basic`, which browsers ask for.

use axum::http::{HeaderMap, header};
use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::error::ApiError;

/// The keys that open the server; without any it is open.
#[derive(Debug)]
pub(crate) struct Keys(Vec<blake3::Hash>);

impl Keys {
    pub(crate) fn new(keys: &[String]) -> Keys {
        Keys(keys.iter().map(|key| blake3::hash(key.as_bytes())).collect())
    }

    /// Checks a request's key against all keys, in a time that says nothing about them: digests
    /// are compared, in constant time.
    ///
    /// # Errors
    /// 401; `is_page` makes a browser ask for the key.
    pub(crate) fn check(&self, headers: &HeaderMap, is_page: bool) -> Result<(), ApiError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let scheme = if is_page { "Basic realm=\"API key as password\"" } else { "Bearer" };
        let refuse = |message| Err(ApiError::unauthorized(message, scheme));
        let Some(given) = headers.get(header::AUTHORIZATION) else {
            return refuse("an API key is needed, as `Authorization: Bearer KEY`");
        };
        let Some(key) = key(given.as_bytes()) else {
            return refuse("the `Authorization` header is not of the form `Bearer KEY`");
        };
        let given = blake3::hash(&key);
        let is_known = self.0.iter().fold(false, |known, key| known | (*key == given));
        if is_known { Ok(()) } else { refuse("the API key is not one of this server's") }
    }
}

fn key(header: &[u8]) -> Option<Vec<u8>> {
    let end = header.iter().position(|byte| *byte == b' ')?;
    let (scheme, rest) = (&header[..end], header[end..].trim_ascii());
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Some(rest.to_vec());
    }
    let pair = scheme.eq_ignore_ascii_case(b"basic").then(|| STANDARD.decode(rest).ok())??;
    let colon = pair.iter().position(|byte| *byte == b':')?;
    Some(pair[colon + 1..].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_opens_and_nothing_else_does() {
        let keys = Keys::new(&["one".into(), "two".into()]);
        let check = |value: &'static [u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.try_into().unwrap());
            keys.check(&headers, false).map_err(|error| (error.status.as_u16(), error.message))
        };
        let good: [&[u8]; 5] =
            [b"Bearer one", b"bearer two", b"BEARER  two ", b"Basic eDp0d28=", b"Basic Om9uZQ=="];
        for good in good {
            assert_eq!(check(good), Ok(()));
        }
        let bad: [&[u8]; 9] = [
            b"Bearer",
            b"Bearer ",
            b"Bearer on",
            b"Bearer one1",
            b"Bearer one two",
            b"one",
            b"Token one",
            b"Basic b25l",
            b"Bearer \xff",
        ];
        for bad in bad {
            assert_eq!(check(bad).unwrap_err().0, 401, "{bad:?}");
        }
        assert_eq!(keys.check(&HeaderMap::new(), false).unwrap_err().status.as_u16(), 401);
        assert!(Keys::new(&[]).check(&HeaderMap::new(), false).is_ok());
    }

    #[test]
    fn a_browser_is_asked_for_the_key() {
        let keys = Keys::new(&["one".into()]);
        let asked = |is_page| {
            let error = keys.check(&HeaderMap::new(), is_page).unwrap_err();
            error.headers[0].1.to_str().unwrap().to_owned()
        };
        assert!(asked(true).starts_with("Basic realm="));
        assert_eq!(asked(false), "Bearer");
    }
}
