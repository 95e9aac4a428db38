// Shows a word's time and confidence beside it: when it is pointed at, tapped, or has the focus.

/**
 * @param {HTMLElement} list whose elements of class "word" have data-details.
 * @param {HTMLElement} bubble the tooltip.
 */
export function showWordDetails(list, bubble) {
  let described = null;

  function show({ target }) {
    const word = target.closest?.(".word");
    hide();
    if (!word) {
      return;
    }
    bubble.textContent = word.dataset.details;
    bubble.hidden = false;
    described = word;
    word.setAttribute("aria-describedby", bubble.id);
    const at = word.getBoundingClientRect();
    const left = Math.min(at.left, document.documentElement.clientWidth - bubble.offsetWidth - 8);
    const above = at.top - bubble.offsetHeight - 4;
    bubble.style.left = `${Math.max(left, 8)}px`;
    bubble.style.top = `${above > 0 ? above : at.bottom + 4}px`;
  }

  function hide() {
    described?.removeAttribute("aria-describedby");
    described = null;
    bubble.hidden = true;
  }

  list.addEventListener("pointerover", show);
  list.addEventListener("focusin", show);
  list.addEventListener("focusout", hide);
  // The word with the focus keeps its own.
  list.addEventListener("pointerleave", () => show({ target: document.activeElement }));
  window.addEventListener("scroll", hide, { passive: true });
  document.addEventListener("keydown", ({ key }) => key === "Escape" && hide());
}
