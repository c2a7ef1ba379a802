//! What the bindings of NVIDIA's libraries share: functions that are found by their names.

use std::path::Path;

use libloading::Library;

/// What a function returns: a status, if nothing else is said.
macro_rules! returned {
    () => {
        std::ffi::c_int
    };
    ($other:ty) => {
        $other
    };
}

/// The functions of a library, by their names in its header.
macro_rules! functions {
    ($($name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions, by their names in the library's header.
        #[allow(non_snake_case, reason = "the library's names")]
        struct Functions {
            $($name: unsafe extern "C" fn($($argument),*) -> returned!($($result)?),)*
        }
        impl Functions {
            /// All of them, or the first that is not there.
            fn find(library: &libloading::Library) -> Result<Self, &'static str> {
                #[allow(unsafe_code, reason = "foreign functions have the types of the header")]
                // SAFETY: the types repeat the header's; names with a version never change theirs.
                unsafe {
                    Ok(Self {
                        $($name: *library
                            .get(stringify!($name).as_bytes())
                            .map_err(|_| stringify!($name))?,)*
                    })
                }
            }
        }
    };
}

/// Opens one of NVIDIA's libraries: a path, or a name that the system's loader looks for.
pub(super) fn load(path: &Path) -> Result<Library, libloading::Error> {
    #[allow(unsafe_code, reason = "opening a library runs its initialisers")]
    // SAFETY: NVIDIA's library, at a path that the user or a package manager put it at.
    unsafe {
        Library::new(path)
    }
}

/// Version of a number like 92801: 9.28.1.
pub(super) fn version(number: usize) -> String {
    format!("{}.{}.{}", number / 10_000, number / 100 % 100, number % 100)
}
