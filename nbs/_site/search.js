// Under each result the page's subtitle: a page opened from disk may not read the pages it found.
new MutationObserver((changes) => {
  for (const item of changes.flatMap((change) => [...change.addedNodes])) {
    const link = item.nodeName === "LI" && item.querySelector("a");
    const text = link && subtitles[link.getAttribute("href").split("#")[0].replace(/\.html$/, "")];
    if (!text || item.querySelector("span:not(.highlighted), .subtitle")) continue;
    const line = item.appendChild(document.createElement("p"));
    line.className = "subtitle";
    line.textContent = text;
  }
}).observe(document, { childList: true, subtree: true });
