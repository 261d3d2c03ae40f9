/** Building elements: text is always text, never markup. */

/**
 * @param {string} tag
 * @param {Object<string, string | number | boolean | undefined>} [attributes]  `class`, `aria-…`; undefined ones are left out
 * @param {...(Node | string)} children
 * @returns {HTMLElement}
 */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false)
      element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children);
  return element;
}

/**
 * An element of the page that is always there.
 * @template {HTMLElement} [T=HTMLElement]
 * @param {string} id
 * @returns {T}
 */
export function byId(id) {
  return /** @type {T} */ (document.getElementById(id));
}

/**
 * "log p" with its model's name set low, and the name of every other value.
 * @param {string} name
 * @returns {(Node | string)[]}
 */
export function withSubscript(name) {
  const [base, low] = name.split("_");
  return low ? [base, make("sub", {}, low)] : [base];
}
