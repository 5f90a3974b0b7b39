// Widgets as they were saved, without a kernel and without a network. The bundle that ipywidgets installs for the classic
// notebook, extension.js, holds all of them; here is the little that it expects of a notebook around it.
(() => {
  const STATE = "application/vnd.jupyter.widget-state+json";
  const VIEW = "application/vnd.jupyter.widget-view+json";
  const nothing = () => {};
  const actions = { register: nothing, get: () => ({ handler: nothing }) };
  const keyboard_manager = { actions, register_events: nothing };
  const events = { on: nothing };
  const kernel = { comm_manager: { register_target: nothing } }; // never connected
  let drawView; // what the bundle registers: draws a view into an element

  const element = (name, fill) => Object.assign(document.createElement(name), fill);
  const joined = (text) => (Array.isArray(text) ? text.join("") : text);
  const drawn = {
    [VIEW]: (data) => {
      const place = element("div");
      drawView.call(new OutputArea({ selector: place }), data, {}, { append: (views) => place.append(...views) });
      return place;
    },
    "text/html": (data) => element("div", { innerHTML: joined(data) }),
    "image/svg+xml": (data) => element("div", { innerHTML: joined(data) }),
    "image/png": (data) => element("img", { src: "data:image/png;base64," + joined(data) }),
    "image/jpeg": (data) => element("img", { src: "data:image/jpeg;base64," + joined(data) }),
    "text/plain": (data) => element("pre", { textContent: joined(data) }),
  };

  class OutputArea { // of an Output widget, which is what `interact` draws into
    constructor({ selector }) { Object.assign(this, { selector, outputs: [], keyboard_manager }); }
    create_output_subarea() { return [element("div", { className: "jupyter-widgets-view" })]; }
    handle_output() {}
    handle_clear_output() {}
    clear_output() { this.selector.replaceChildren(); }
    toJSON() { return this.outputs; }
    fromJSON(outputs) {
      this.outputs = outputs;
      for (const output of outputs) {
        const data = output.data ?? { "text/plain": output.text ?? output.traceback ?? "" };
        const type = Object.keys(drawn).find((each) => each in data);
        if (type) this.selector.append(drawn[type](data[type]));
      }
    }
  }
  OutputArea.prototype.register_mime_type = (type, draw) => { drawView = draw; };

  const notebook = { kernel, metadata: {}, events, keyboard_manager, container: events, get_cells: () => [] };
  const modules = {
    "base/js/namespace": { notebook }, "base/js/events": events, "notebook/js/outputarea": { OutputArea },
  };
  const scripts = (type) => [...document.querySelectorAll(`script[type="${type}"]`)];

  // labels are typeset by the second MathJax, as the classic notebook had it; a page has the third, loaded by then
  const typeset = { Queue: ([, , place]) => window.MathJax.typesetPromise?.([place]) };

  async function show(extension) {
    if (window.MathJax) window.MathJax.Hub ??= typeset;
    const menu = document.body.appendChild(element("div", { hidden: true, innerHTML: '<ul><li><a id="help_menu"></a></li></ul>' }));
    await extension.load_ipython_extension();
    menu.remove();
    const manager = kernel.widget_manager;
    manager._create_comm = () => Promise.reject(new Error("there is no kernel"));
    manager._get_comm_info = () => Promise.resolve({});
    for (const script of scripts(STATE)) await manager.set_state(JSON.parse(script.textContent));
    for (const script of scripts(VIEW)) {
      const place = script.parentElement.insertBefore(element("div"), script);
      place.append(drawn[VIEW](JSON.parse(script.textContent)));
    }
  }

  const here = document.currentScript.src;
  window.Jupyter = { version: "6.5.0", notebook, notification_area: { widget: nothing }, menubar: { actions } };
  window.requirejs = (names, then) => then(...names.map((name) => modules[name]));
  window.requirejs.config = nothing;
  document.addEventListener("DOMContentLoaded", () => {
    const uri = here.replace(/widgets\.js.*$/, "extension.js");
    window.define = (names, make) => { window.define = undefined; show(make({ uri })); };
    document.head.append(element("script", { src: uri }));
  });
})();
