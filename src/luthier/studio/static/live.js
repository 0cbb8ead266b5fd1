// One WebSocket for the whole tab, closed while it is hidden. Subscriptions survive reconnecting: each keeps
// the place (`offset`) up to which it has read, so nothing is lost and nothing is told twice.

class Live {
  #socket = null;
  #topics = new Map();
  #next = 1;
  #wait = 500;
  #timer = 0;

  constructor() {
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#close() : this.#open()));
    addEventListener("pagehide", () => this.#close());
    addEventListener("pageshow", () => this.#open());
  }

  /** topic: {topic, id?, offset?}. handler(message) is called for each; returns a function that ends it. */
  subscribe(topic, handler) {
    const key = this.#next++;
    this.#topics.set(key, { topic, handler });
    if (this.#socket?.readyState === WebSocket.OPEN) this.#ask(key);
    else this.#open();
    return () => {
      this.#topics.delete(key);
      if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify({ end: key }));
    };
  }

  #ask(key) {
    this.#socket.send(JSON.stringify({ key, ...this.#topics.get(key).topic }));
  }

  #open() {
    if (this.#socket || document.hidden || !this.#topics.size) return;
    const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/live`);
    this.#socket = socket;
    socket.onopen = () => {
      this.#wait = 500;
      document.documentElement.dataset.live = "on";
      for (const key of this.#topics.keys()) this.#ask(key);
    };
    socket.onmessage = (event) => {
      const message = JSON.parse(event.data);
      const one = this.#topics.get(message.key);
      if (!one) return;
      if (message.offset !== undefined) one.topic.offset = message.offset;
      one.handler(message);
    };
    socket.onclose = () => {
      if (this.#socket !== socket) return;
      this.#socket = null;
      document.documentElement.dataset.live = "off";
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#open(), this.#wait);
      this.#wait = Math.min(this.#wait * 1.7, 8000);
    };
  }

  #close() {
    clearTimeout(this.#timer);
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
  }
}

export const live = new Live();
