//! Ranks as points of a grid whose axes are ways to split the work.

use super::CollectiveError;

/// Named axes and their sizes; ranks are numbered with the last axis running fastest.
///
/// ```
/// use brolly_exec::collectives::Mesh;
///
/// let mesh = Mesh::new(&[("data", 2), ("tensor", 3)])?;
/// assert_eq!(mesh.coords(4)?, [1, 1]);
/// assert_eq!(mesh.rank(&[1, 1])?, 4);
/// assert_eq!(mesh.members(4, &["tensor"])?, [3, 4, 5]);
/// assert_eq!(mesh.members(4, &["data"])?, [1, 4]);
/// # Ok::<(), brolly_exec::collectives::CollectiveError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mesh {
    axes: Vec<(String, usize)>,
    ranks: usize,
}

impl Mesh {
    /// A mesh of these axes, which needs the product of their sizes in ranks.
    ///
    /// # Errors
    /// [`CollectiveError::Mesh`] for a size of zero, a name used twice, and too many ranks.
    pub fn new(axes: &[(&str, usize)]) -> Result<Mesh, CollectiveError> {
        let fail = |reason: String| Err(CollectiveError::Mesh(reason));
        let mut ranks = 1usize;
        for (index, &(name, size)) in axes.iter().enumerate() {
            if axes[..index].iter().any(|&(other, _)| other == name) {
                return fail(format!("axis `{name}` is named twice"));
            }
            if size == 0 {
                return fail(format!("axis `{name}` has size 0"));
            }
            match ranks.checked_mul(size).filter(|&ranks| u32::try_from(ranks).is_ok()) {
                Some(product) => ranks = product,
                None => return fail("more ranks than 32 bits count".into()),
            }
        }
        let axes = axes.iter().map(|&(name, size)| (name.to_owned(), size)).collect();
        Ok(Mesh { axes, ranks })
    }

    /// How many ranks it has.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// Names and sizes.
    pub fn axes(&self) -> impl Iterator<Item = (&str, usize)> {
        self.axes.iter().map(|(name, size)| (name.as_str(), *size))
    }

    /// The size of an axis; 1 for one that the mesh does not have.
    pub fn size(&self, axis: &str) -> usize {
        self.axes().find(|&(name, _)| name == axis).map_or(1, |(_, size)| size)
    }

    /// Where a rank lies, a coordinate for each axis.
    ///
    /// # Errors
    /// [`CollectiveError::Mesh`] if there is no such rank.
    pub fn coords(&self, rank: usize) -> Result<Vec<usize>, CollectiveError> {
        if rank >= self.ranks {
            let reason = format!("rank {rank} is not one of {} ranks", self.ranks);
            return Err(CollectiveError::Mesh(reason));
        }
        let mut rest = rank;
        let mut coords: Vec<usize> = self
            .axes
            .iter()
            .rev()
            .map(|&(_, size)| {
                let coord = rest % size;
                rest /= size;
                coord
            })
            .collect();
        coords.reverse();
        Ok(coords)
    }

    /// The rank at these coordinates.
    ///
    /// # Errors
    /// [`CollectiveError::Mesh`] if they are not within the mesh.
    pub fn rank(&self, coords: &[usize]) -> Result<usize, CollectiveError> {
        let inside = coords.iter().zip(&self.axes).all(|(&coord, &(_, size))| coord < size);
        if coords.len() != self.axes.len() || !inside {
            let reason = format!("{coords:?} lies outside of the axes {:?}", self.axes);
            return Err(CollectiveError::Mesh(reason));
        }
        let axes = coords.iter().zip(&self.axes);
        Ok(axes.fold(0, |rank, (&coord, &(_, size))| rank * size + coord))
    }

    /// The ranks that differ from `rank` along `axes` alone, `rank` included, in ascending order.
    ///
    /// # Errors
    /// [`CollectiveError::Mesh`] if the rank or an axis does not exist.
    pub fn members(&self, rank: usize, axes: &[&str]) -> Result<Vec<usize>, CollectiveError> {
        let names = || self.axes.iter().map(|(name, _)| name.as_str());
        if let Some(unknown) = axes.iter().find(|axis| !names().any(|name| name == **axis)) {
            let known: Vec<&str> = names().collect();
            let reason = format!("there is no axis `{unknown}`; there are: {}", known.join(", "));
            return Err(CollectiveError::Mesh(reason));
        }
        let mut members = vec![0];
        for ((name, size), here) in self.axes().zip(self.coords(rank)?) {
            let range = if axes.contains(&name) { 0..size } else { here..here + 1 };
            let step = |at: usize| range.clone().map(move |coord| at * size + coord);
            members = members.into_iter().flat_map(step).collect();
        }
        Ok(members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NAMES: [&str; 4] = ["data", "pipeline", "tensor", "sequence"];

    proptest! {
        #[test]
        fn ranks_and_coordinates_are_each_others_inverse(
            sizes in prop::collection::vec(1usize..5, 0..5),
        ) {
            let names = NAMES.iter().zip(&sizes);
            let mesh = Mesh::new(&names.map(|(name, size)| (*name, *size)).collect::<Vec<_>>())?;
            for rank in 0..mesh.ranks() {
                prop_assert_eq!(mesh.rank(&mesh.coords(rank)?)?, rank);
            }
        }

        #[test]
        fn groups_partition_the_ranks(
            sizes in prop::collection::vec(1usize..4, 4),
            chosen in prop::collection::vec(any::<bool>(), 4),
        ) {
            let names = NAMES.iter().zip(&sizes);
            let mesh = Mesh::new(&names.map(|(name, size)| (*name, *size)).collect::<Vec<_>>())?;
            let axes: Vec<&str> =
                NAMES.iter().zip(&chosen).filter(|(_, chosen)| **chosen).map(|(n, _)| *n).collect();
            let size: usize = axes.iter().map(|axis| mesh.size(axis)).product();
            for rank in 0..mesh.ranks() {
                let members = mesh.members(rank, &axes)?;
                prop_assert_eq!(members.len(), size);
                prop_assert!(members.contains(&rank) && members.is_sorted());
                for &member in &members {
                    prop_assert_eq!(&mesh.members(member, &axes)?, &members);
                }
            }
        }
    }

    #[test]
    fn what_is_no_mesh_is_refused() {
        let message = |axes: &[(&str, usize)]| Mesh::new(axes).unwrap_err().to_string();
        assert!(message(&[("data", 0)]).contains("size 0"));
        assert!(message(&[("data", 2), ("data", 2)]).contains("twice"));
        assert!(message(&[("data", usize::MAX), ("tensor", 2)]).contains("32 bits"));
        let mesh = Mesh::new(&[("data", 2)]).unwrap();
        assert!(mesh.coords(2).is_err() && mesh.rank(&[2]).is_err() && mesh.rank(&[]).is_err());
        assert!(mesh.members(0, &["tensor"]).unwrap_err().to_string().contains("there are: data"));
    }
}
