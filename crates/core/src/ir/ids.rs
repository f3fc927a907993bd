//! Index newtypes.

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[derive(serde::Serialize, serde::Deserialize)]
        pub struct $name(pub u32);

        impl $name {
            /// The id of index `i`.
            ///
            /// # Panics
            /// When `i` exceeds `u32::MAX`.
            pub fn new(i: usize) -> $name {
                $name(u32::try_from(i).expect("fewer than 2^32 items"))
            }

            /// As an index.
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }
    };
}
pub(crate) use id;

id!(/// A value (tensor) of a [`super::Graph`].
    ValueId);
id!(/// A node of a [`super::Graph`].
    NodeId);
