"use strict";
// The websocket is at the address of this page. textual.js reads it when the page has loaded.
const scheme = location.protocol === "https:" ? "wss:" : "ws:";
document.getElementById("terminal").dataset.sessionWebsocketUrl = `${scheme}//${location.host}/ws`;
document.getElementById("again").addEventListener("click", () => location.reload());
