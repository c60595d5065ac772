// What scrolls can be reached with the keyboard. The theme wraps wide tables only after the page has loaded.
new MutationObserver(() => {
  for (const one of document.querySelectorAll(".md-typeset__scrollwrap:not([tabindex])")) one.tabIndex = 0;
}).observe(document.body, { childList: true, subtree: true });
