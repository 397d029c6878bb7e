package dispatch

// heap is a binary heap whose elements know their positions, so that any of them can be
// removed. It counts its steps.
type heap[T any] struct {
	list []T
	less func(x, y T) bool
	// position returns where an element keeps its position in this heap, counted from 1;
	// 0 while it is not in the heap.
	position func(T) *int
	steps    *int
}

func (h *heap[T]) len() int { return len(h.list) }

// min returns the first element; the zero value when there is none.
func (h *heap[T]) min() (first T) {
	if len(h.list) > 0 {
		first = h.list[0]
	}
	return first
}

func (h *heap[T]) contains(x T) bool { return *h.position(x) > 0 }

func (h *heap[T]) push(x T) {
	h.list = append(h.list, x)
	*h.position(x) = len(h.list)
	h.up(len(h.list) - 1)
}

// remove removes an element if it is in the heap.
func (h *heap[T]) remove(x T) {
	i := *h.position(x) - 1
	if i < 0 {
		return
	}
	last := len(h.list) - 1
	h.swap(i, last)
	var zero T
	h.list[last] = zero
	h.list = h.list[:last]
	*h.position(x) = 0
	if i < last {
		h.down(i)
		h.up(i)
	}
}

func (h *heap[T]) swap(i, j int) {
	h.list[i], h.list[j] = h.list[j], h.list[i]
	*h.position(h.list[i]), *h.position(h.list[j]) = i+1, j+1
}

func (h *heap[T]) up(i int) {
	for i > 0 {
		*h.steps++
		parent := (i - 1) / 2
		if !h.less(h.list[i], h.list[parent]) {
			return
		}
		h.swap(i, parent)
		i = parent
	}
}

func (h *heap[T]) down(i int) {
	for {
		*h.steps++
		child := 2*i + 1
		if child >= len(h.list) {
			return
		}
		if right := child + 1; right < len(h.list) && h.less(h.list[right], h.list[child]) {
			child = right
		}
		if !h.less(h.list[child], h.list[i]) {
			return
		}
		h.swap(i, child)
		i = child
	}
}
